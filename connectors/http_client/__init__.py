"""HTTP POST with one deadline for all of it (`post.HttpPoster`), and the policy of where it may go (`url_policy`).

May import `common` and the files at the top of `connectors`.
"""
