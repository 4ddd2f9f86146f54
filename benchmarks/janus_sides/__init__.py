"""What ``janus_step.py`` compares."""
