"""What can be put under load: one Protocol and the runtimes that keep it."""
