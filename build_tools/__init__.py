"""The parts of setup.py: what is compiled, with which tools and flags, and how wheels are named."""
