"""A whole task on a twin: a scripted teleoperator, a cell on a virtual clock, demonstrations and deployment."""
