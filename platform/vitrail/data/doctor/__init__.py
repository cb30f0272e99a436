"""The doctor: what is wrong with a data set, sample by sample and as a whole, and a page that shows it."""
