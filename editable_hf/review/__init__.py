"""What a patch changes, before it is shipped: every output of a regression set that is another one afterwards."""
