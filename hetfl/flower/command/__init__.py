"""``hetfl flower``: the processes of Flower that a server and its nodes need, from their start to their end."""
