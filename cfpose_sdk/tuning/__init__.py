"""`cfpose tune`: what is fastest on this machine, measured in processes of their own and proven."""
