"""Each stage: where its pure functions meet the workdir, the devices and the user."""
