"""Command-line scripts: flags to dataclasses, one library call, records out."""
