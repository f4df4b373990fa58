"""Talking to an S3 server.

client      one S3 operation each; its parts are
  access      credentials and endpoint, by boto3     signing     AWS Signature 4
  pool        the connections                        connection  one request, one answer
  messages    XML                                    errors      what refusals mean
  checksums   MD5 of what came
"""
