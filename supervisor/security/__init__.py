"""Who asks, and whether they may: principals, authentication at each way in, authorisation in one place."""
