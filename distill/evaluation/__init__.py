"""What N is worth: draws, scores and the statistics over them."""
