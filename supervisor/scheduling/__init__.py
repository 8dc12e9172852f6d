"""Which request runs when, and on which worker. Pure: no sockets, processes or clock."""
