"""One file that holds a trained network with all that its use needs."""
