"""A client that knows nothing but an address: `-plaintext [-H HEADER] [-d JSON] ADDRESS SERVICE/METHOD`, as grpcurl takes it.

It learns everything by reflection and writes JSON, so it can call whatever a server serves.
"""

import argparse
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

parser = argparse.ArgumentParser()
parser.add_argument("-plaintext", action="store_true", required=True)
parser.add_argument("-H", dest="headers", action="append", default=[])
parser.add_argument("-d", dest="data", default="{}")
parser.add_argument("address")
parser.add_argument("method")
arguments = parser.parse_args()

with grpc.insecure_channel(arguments.address) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    service, _, name = arguments.method.partition("/")
    method = DescriptorPool(database).FindServiceByName(service).FindMethodByName(name)
    call = channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    metadata = [(key.strip(), value.strip()) for key, _, value in (header.partition(":") for header in arguments.headers)]
    answer = call(Parse(arguments.data, GetMessageClass(method.input_type)()), metadata=metadata, timeout=10)
    sys.stdout.write(MessageToJson(answer, preserving_proto_field_name=True))
