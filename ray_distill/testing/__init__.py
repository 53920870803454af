"""Public fakes: a teacher, a crashing file system, a gloo launcher, an S3 server."""
