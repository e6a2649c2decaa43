from twisted.application.service import Application

from backupd.tap import Options, makeService

application = Application("backupd")
makeService(Options()).setServiceParent(application)
