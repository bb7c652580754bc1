"""Generated worlds with questions, and the measures for answers."""
