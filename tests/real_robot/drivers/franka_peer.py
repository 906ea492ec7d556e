"""The public simulator `franky-sim` as a peer in a process of its own: speaks libfranka's protocol on 127.0.0.1.

Reads a line at a time: `reflex` and `user_stop` put the controller's state there, `well` and a recovery take it back.
"""

import sys
import threading

from franky_sim import SimulationServer, franka_robot_protocol
from franky_sim.franka_robot_protocol import RobotMode
from franky_sim.franka_robot_server import FrankaRobotServer
from franky_sim.mujoco_simulator import MujocoSimulator

MODES = {"reflex": RobotMode.kReflex, "user_stop": RobotMode.kUserStopped, "well": None}
shown: dict[str, RobotMode | None] = {"mode": None}


def script_faults() -> None:
    """Its state message carries reflexes that no code of it raises: these lines do."""
    plain_state = FrankaRobotServer.robot_state.fget
    recover = franka_robot_protocol.AutomaticErrorRecoveryCommand.handle

    def state(self):
        now = plain_state(self)
        if shown["mode"] is None:
            return now
        flags = tuple(index == 6 for index in range(41))  # joint_reflex
        return now.replace(robot_mode=shown["mode"], errors=flags, reflex_reason=flags)

    def handle(self, server) -> None:
        shown["mode"] = None
        recover(self, server)

    FrankaRobotServer.robot_state = property(state)
    franka_robot_protocol.AutomaticErrorRecoveryCommand.handle = handle


def main() -> None:
    script_faults()
    with MujocoSimulator() as sim:
        sim.add_robot()
        with SimulationServer(sim) as server:
            threading.Thread(target=listen, args=(server,), daemon=True).start()
            print(server.robot_servers[0].hostname, flush=True)
            server.run_forever()


def listen(server) -> None:
    for line in sys.stdin:
        word = line.strip()
        shown["mode"] = MODES[word]
        robot = server.robot_servers[0]
        if word != "well" and robot.current_motion_id:
            franka_robot_protocol.BaseCommand.send_response(
                robot._tcp_socket,
                franka_robot_protocol.RobotCommand.kMove,
                robot.current_motion_id,
                franka_robot_protocol.MoveStatus.kReflexAborted,
            )
            robot.stop_motion()
            robot.reset_current_motion_id()
        print(word, flush=True)
    server.running = False


if __name__ == "__main__":
    main()
