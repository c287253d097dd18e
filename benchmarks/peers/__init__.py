"""Other libraries beside ours, in turn: see ``__main__``. Each is imported only where it is measured."""
