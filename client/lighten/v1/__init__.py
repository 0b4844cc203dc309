"""Messages of the contract: ``from lighten import v1 as pb``, then ``pb.JobSpec``.

The service stubs stand in ``lighten.v1.optimization_service_pb2_grpc``; messages need no grpc.
"""

from lighten.v1.event_pb2 import *
from lighten.v1.job_pb2 import *
from lighten.v1.optimization_service_pb2 import *
from lighten.v1.options_pb2 import *
from lighten.v1.quantization_pb2 import *
from lighten.v1.spec_pb2 import *
from lighten.v1.techniques_pb2 import *
from lighten.v1.worker_service_pb2 import *
