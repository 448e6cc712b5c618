"""One file that holds a program's state at one moment, and what puts it back."""
