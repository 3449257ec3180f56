"""From estimates and truth to a report."""
