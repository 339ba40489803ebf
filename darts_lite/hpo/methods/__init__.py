"""Search methods of `tune`: pure functions of the records."""
