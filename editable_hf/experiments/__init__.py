"""What only recipes and scripts need: stages that resume, tables, tuning, pictures."""
