"""What edits do: drawdown and its intervals, success, and whether they hold, carry over and stay local."""
