"""The command line: parse, call, print; a verb a file."""
