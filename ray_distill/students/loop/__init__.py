"""Run the training steps of one student, validate it and keep its best weights."""
