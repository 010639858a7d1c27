"""``hetfl flower``: starts, watches and stops the Flower processes of a server and its nodes."""
