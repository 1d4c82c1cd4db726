"""Reports: result files in, a table and a picture out."""
