"""What finished images are judged by: verifiers' accuracy, distances between feature sets, neighbours."""
