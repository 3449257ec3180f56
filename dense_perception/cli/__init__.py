"""Commands that parse arguments, call the library and print."""
