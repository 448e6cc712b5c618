"""What a synthetic set gives away of the records that it was made from: four attacks, each beside its baseline."""
