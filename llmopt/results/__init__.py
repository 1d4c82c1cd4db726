"""What a measurement leaves behind: the schema of a result file, and the store of such files."""
