"""What setup.py compiles, with which tools and flags, and how wheels are named; and WebAssembly, which it does not."""
