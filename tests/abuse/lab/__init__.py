"""What rows are made of: processes, clients, scripted endpoints, loads."""
