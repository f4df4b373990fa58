"""A datastore in a bucket, in PBS's own layout (spec maintenance.md section 1).

config      where it is, and how to talk to it
backend     the Backend; opening and creating one
keys        names and keys                         marker      whose bucket it is
temporary   indexes on their way
locks       locks that are leases
client      one S3 operation each; its parts are
  access      credentials and endpoint, by boto3     signing     AWS Signature 4
  pool        the connections                        connection  one request, one answer
  messages    XML                                    errors      what refusals mean
  tls         whom to trust
"""
