"""Everything that touches flags, files, devices and processes; the algorithms beside it know nothing of it."""
