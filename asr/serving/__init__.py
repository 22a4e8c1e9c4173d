"""Recognition over the network: files, live streams and a page, for the clients that people already have.

The only folder that imports aiohttp. `app.application` is the whole as an aiohttp application, `app.run` the server.
"""
