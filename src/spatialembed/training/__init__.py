"""What a training is made of: its set-up, one step, what follows an epoch, the end."""
