"""The operator's page: a big e-stop, what the arms do, what the cameras see."""
