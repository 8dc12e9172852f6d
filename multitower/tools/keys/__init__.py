"""What `multitower keys` does: files of secret keys and tokens, and entries in the file of principals.

The modules neither print nor end the process.
"""
