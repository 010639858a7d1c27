"""What pruning needs: scores of entries, densities of layers, schedules, masks."""
