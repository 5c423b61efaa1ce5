"""Makes a VM, waits for it, and follows the host: quickstart.py SERVER IMAGE_ID"""
import sys
import grpc
from kvmlet.v1 import event_pb2, node_pb2_grpc, operation_pb2, operation_pb2_grpc, vm_pb2
from kvmlet.v1 import vm_service_pb2, vm_service_pb2_grpc

server, image = sys.argv[1:]  # unix:/run/kvmlet/kvmlet.sock and the id of an image
# Over the network: grpc.secure_channel("host7:7443", grpc.ssl_channel_credentials(ca, key, cert))
channel = grpc.insecure_channel(server, [("grpc.default_authority", "localhost")])
vms = vm_service_pb2_grpc.VmServiceStub(channel)
operation = vms.CreateVm(vm_service_pb2.CreateVmRequest(
    name="web1", image_id=image, start=True,
    hardware=vm_pb2.Hardware(vcpus=1, memory_bytes=256 << 20)))
wait = operation_pb2.WaitOperationRequest(operation_id=operation.id, timeout={"seconds": 60})
ended = operation_pb2_grpc.OperationServiceStub(channel).WaitOperation(wait)
print(operation_pb2.OperationState.Name(ended.state), ended.error.message)
vm = vms.GetVm(vm_service_pb2.GetVmRequest(vm_id=operation.vm_id))
print(vm.name, vm_pb2.VmState.Name(vm.state))
watch = event_pb2.WatchEventsRequest(snapshot=True)
for event in node_pb2_grpc.NodeServiceStub(channel).WatchEvents(watch):
    print(event.revision, event.WhichOneof("event"), flush=True)
