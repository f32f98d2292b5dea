"""What `python run.py bench NAME` measures; a module here is one NAME, and its docstring says what and how."""
