"""Search methods of `tune`: pure functions of what was measured."""
