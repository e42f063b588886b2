"""What edits do to translations: drawdown and its intervals, Table 6, and one edit shown in full."""
