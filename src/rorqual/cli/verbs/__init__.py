"""One verb a file. A verb imports what it needs inside its function: `rorqual --help` takes no second."""
