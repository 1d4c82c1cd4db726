"""Results of other tools as cells of a report."""
