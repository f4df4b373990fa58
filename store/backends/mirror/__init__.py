"""Several sites with the same datastore (notes/0014-mirror.md).

backend       the Backend of them all
sites         which is near, and which can be reached
late          one that was away when the mirror was opened
read_repair   bad and missing chunks, replaced as they are read
"""
