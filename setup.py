"""Install the package, its ROS 2 resources and its executables."""

from glob import glob

from setuptools import find_packages, setup

NAME = 'dense_perception'

setup(
    name=NAME,
    version='0.1.0',
    description='Per-pixel labels and optical flow from a camera, as a ROS 2 node',
    license='Apache-2.0',
    maintainer='dense_perception maintainers',
    maintainer_email='maintainers@dense-perception.example.com',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['py.typed', 'weights/files/*', 'evaluation/*.jinja']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/launch', sorted(glob('launch/*.launch.py'))),
        (f'share/{NAME}/config', sorted(glob('config/*'))),
        (f'share/{NAME}/examples', sorted(glob('examples/*.py'))),
        # Not entry points: only as data does pip, too, put them where `ros2 run` looks.
        (f'lib/{NAME}', sorted(glob('scripts/*'))),
    ],
    install_requires=['setuptools'],
    extras_require={
        'fast': ['openvino', 'nncf'],
        'onnx': ['onnx', 'onnxscript', 'onnxruntime'],
        'tensorrt': ['tensorrt', 'onnx', 'onnxscript'],
        'curves': ['tensorboard'],
        'many': ['ray'],
    },
    zip_safe=False,
)
