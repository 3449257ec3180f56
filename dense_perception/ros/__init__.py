"""The ROS shell: messages, bags and nodes; the only part of the package that knows ROS."""
